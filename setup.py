"""Everything else is in pyproject.toml: configs/ and uv_assets/ live at the top level and travel in the wheel."""

import sys

from setuptools import find_packages, setup

IS_EDITABLE = "editable_wheel" in sys.argv  # finds them where they are; one plain path then leads to the checkout
RESOURCES = {} if IS_EDITABLE else {f"nl3dmm._resources.{folder}": folder for folder in ("configs", "uv_assets")}
packages = [*find_packages(include=["nl3dmm*"]), *RESOURCES]
setup(packages=packages, package_dir={"": "."} if IS_EDITABLE else RESOURCES)
