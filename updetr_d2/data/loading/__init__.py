"""From dataset dicts to batches: order, workers, faults, a place in the stream that can be saved."""
