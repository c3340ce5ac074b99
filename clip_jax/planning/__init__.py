"""What a run would need and how fast it would be on devices that are not here."""
