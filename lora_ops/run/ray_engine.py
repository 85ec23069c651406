class RayTasks: pass
