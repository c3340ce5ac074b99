"""The encoders as pure Linen modules, and the architectures by name."""
