"""What everybody speaks and what lies on disk: errors, tensors, manifests, bundles, stores, configuration."""
