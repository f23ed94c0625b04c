"""HTTP: the Open Inference Protocol over the data plane."""
