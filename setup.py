"""What pyproject.toml cannot say: the recipes of ``configs/`` become ``updetr_d2/configs`` of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["updetr_d2", "updetr_d2.*"]), "updetr_d2.configs"],
    package_dir={"updetr_d2.configs": "configs"},
    package_data={
        "updetr_d2": ["py.typed"],
        "updetr_d2.report": ["*.jinja"],
        "updetr_d2.configs": ["**/*.yaml"],
    },
)
