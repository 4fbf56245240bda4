"""Running programs: sandboxes, the supervisor of processes, executors. It knows nothing of models."""
