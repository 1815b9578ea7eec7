class SpatialDataReader:
    name = "spatialdata"
    looks_for = ""
    def find(self, folder):
        return ()
