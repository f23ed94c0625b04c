"""The gRPC face: `inference.GRPCInferenceService` over the data plane, beside `grpc.health.v1` and reflection.

The messages are those that NVIDIA generates from the published protocol and ships in tritonclient.
"""
