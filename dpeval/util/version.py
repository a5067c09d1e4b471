"""The version of dpeval, in a module that can be imported without the public interface."""

__version__ = "0.1.0"
