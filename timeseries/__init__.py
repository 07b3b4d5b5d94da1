"""Time series: gaps filled and futures drawn by diffusion, with calibrated uncertainty."""
