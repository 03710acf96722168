"""Studies: several arms of pretraining (maskers x objectives), several seeds of each, evaluated and compared."""
