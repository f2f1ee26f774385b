"""The diffusion process: noise schedules and Gaussian diffusion, as pure functions."""
