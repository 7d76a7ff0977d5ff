"""One error family. Each message says what was got, what was expected and what to do.

Template: ``"<argument>: got <value>; expected <rule>. <one action>."``
"""


class Nl3dmmError(ValueError):
    """Base of every error that nl3dmm raises on bad input; also a ``ValueError``."""


class ShapeError(Nl3dmmError):
    """A tensor has the wrong shape, dtype or a non-finite value."""


class ImageError(Nl3dmmError):
    """An image cannot be decoded, is too large, or shows no face."""


class NoFaceError(ImageError):
    """No face was found in an image."""


class AssetError(Nl3dmmError):
    """A template or model file is missing, damaged, or not what it claims to be."""


class CheckpointError(Nl3dmmError):
    """A checkpoint is missing, damaged, or belongs to another template or config."""


class ConfigError(Nl3dmmError):
    """A config key or value is unknown or invalid."""


class OutputError(Nl3dmmError):
    """An output folder or file cannot be written."""


class BackendError(Nl3dmmError):
    """A rendering backend or an optional package is not usable on this machine."""
