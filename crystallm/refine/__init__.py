"""Diffusion of coordinates and cells: refines what the language model wrote, or generates from noise."""
