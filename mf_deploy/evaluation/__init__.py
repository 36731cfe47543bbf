"""How accurate artifacts are: statistics, gates, and where they first drift from the reference."""

from mf_deploy.evaluation.accuracy import AccuracyReport, AccuracyReports, check, check_all
from mf_deploy.evaluation.comparison import Subject
from mf_deploy.evaluation.gates import Gates

__all__ = ["AccuracyReport", "AccuracyReports", "Gates", "Subject", "check", "check_all"]
