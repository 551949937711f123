"""Independent jobs: where they run, in this process, in several, or on a Ray cluster."""
