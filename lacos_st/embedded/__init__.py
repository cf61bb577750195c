"""The models and samples that travel with the package."""
