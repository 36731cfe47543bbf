"""What int8 costs each part of a model, drawn: one bar a part, the longest for the most noise."""

from mf_deploy.calibration.sensitivity import Sensitivity
from mf_deploy.report.templates import environment

QUIETEST_DB = 70.0
"""A part at this SQNR or above has no bar: its noise cannot be told from rounding."""


def render_sensitivity(sensitivity: Sensitivity) -> str:
    """One HTML page that needs nothing else; every text from outside is escaped."""
    lowest = min((unit.sqnr_db for unit in sensitivity.units), default=0.0)
    spread = max(QUIETEST_DB - min(lowest, QUIETEST_DB - 1), 1.0)
    rows = [
        (unit, round(100 * max(0.0, QUIETEST_DB - unit.sqnr_db) / spread, 1)) for unit in sensitivity.units
    ]
    total = max(sum(unit.macs for unit in sensitivity.units), 1)
    template = environment().get_template("sensitivity.html.jinja")
    return template.render(sensitivity=sensitivity, rows=rows, total=total, quietest=QUIETEST_DB)
