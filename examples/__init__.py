"""Training and explaining, each in under a minute: `python -m examples.learn_betas`, and so on."""
