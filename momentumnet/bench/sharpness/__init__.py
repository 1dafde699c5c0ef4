"""What SAM does to the loss landscape: sharpness and curvature in the course of trainings, and against rho."""
