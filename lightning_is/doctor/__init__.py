"""The doctor: what importance sampling could gain in this fit, said as it begins."""

from lightning_is.doctor.doctor import Doctor
from lightning_is.doctor.report import Report

__all__ = ["Doctor", "Report"]
