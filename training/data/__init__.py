"""From a data set to batches on the host, in an order that survives an interruption."""
