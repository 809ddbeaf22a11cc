"""From a data set to batches on the host, in an order that does not change when a run is interrupted."""
