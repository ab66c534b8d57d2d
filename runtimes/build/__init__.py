"""Building images from Containerfiles: parsing them, running their steps in containers, caching the layers."""
