"""The version of dpeval; here, so that no module has to import the face of the package."""

__version__ = "0.1.0"
