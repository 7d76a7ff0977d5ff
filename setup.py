"""Everything else is in pyproject.toml: configs/ and uv_assets/ live at the top level and travel in the wheel."""

from setuptools import find_packages, setup

RESOURCES = {f"nl3dmm._resources.{folder}": folder for folder in ("configs", "uv_assets")}
setup(packages=[*find_packages(include=["nl3dmm*"]), *RESOURCES], package_dir=RESOURCES)
