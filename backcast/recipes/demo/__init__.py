"""The whole loop on data that installs with the package."""
