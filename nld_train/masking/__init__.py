"""What is hidden and who sees whom: noise levels, masked positions, blocks, and the one rule of visibility."""
