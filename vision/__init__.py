"""Images: networks, data, pipeline, training and evaluation."""
