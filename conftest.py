"""Root: the tests' pytester."""

pytest_plugins = ["pytester"]
