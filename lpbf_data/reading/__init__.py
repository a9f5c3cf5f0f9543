"""From the address of a data set to the tensors of one case."""
