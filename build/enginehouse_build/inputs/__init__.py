"""What a build starts from: recipe, source, samples, pre- and post-processing, metric."""
