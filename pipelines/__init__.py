"""From simulator output to a published data set."""
