"""`clip-jax bench`: models measured on suites of tasks, cached, resumable, as tables and a page."""
