class WrappersMP:
    # Around the sampling of an image; around one run of the model in it.
    OUTER_SAMPLE: str = "outer_sample"
    APPLY_MODEL: str = "apply_model"
