"""What is run: one file an experiment, each a Config and a ``run(config, out)`` that writes records."""
