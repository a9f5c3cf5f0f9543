"""What users hold: data sets, streams, samplers, batches and loaders."""
