"""What the scripts at the top stand on."""
