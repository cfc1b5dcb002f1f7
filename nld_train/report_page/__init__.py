"""The page of `nld-report`: one HTML file with the curves of a run and texts that one watches being decoded."""
