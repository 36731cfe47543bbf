"""mf-deploy: from a Mobile-Former checkpoint to models that phones run, with the evidence."""

__version__ = "0.1.0"
