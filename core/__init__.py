"""The core of diffusion: schedules, kernels, denoisers, objectives, samplers, bounds and training."""
