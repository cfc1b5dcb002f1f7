"""What the commands that decode share: prompts, options, output on a terminal."""
