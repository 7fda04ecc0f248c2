"""The fixtures are in tests/support/fixtures.py. A GPU host runs tests/gpu without what the service needs."""

from importlib.util import find_spec

pytest_plugins = ["tests.support.fixtures"] if find_spec("sqlalchemy") else []
