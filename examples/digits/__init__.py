"""A diffusion model of handwritten digits, small enough to ship, with Stable Diffusion's names."""
