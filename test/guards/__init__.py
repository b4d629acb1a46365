# Guards: tests over the source tree, the command line, the configs, the README and the wheel.
# Entry points: `python test/run_tests.py test/guards`.
# Every guard has a test that it can fail.
"""Guard tests."""
