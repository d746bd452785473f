"""The trace estimator: transformers, peft, FSDP2 and DeepSpeed on fake tensors, replayed through an allocator.

Light modules (`estimate`, `running`, `digest`, `expand`, `buckets`, `allocator`, `replay`, `stream`, `record`,
`settings`) need no torch; the others run in the trace and are imported by `worker` only.
"""
