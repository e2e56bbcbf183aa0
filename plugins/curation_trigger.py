"""Start a DAG's run from a page, as Airflow's own form does."""

from typing import Any


def trigger(dag_id: str, conf: dict[str, Any], user: str) -> str:
    """Queue a run and return its id. The caller has asked Airflow whether this user may.

    raises  HTTPException: 404 for an unknown DAG, 409 for one that is paused, 400 for parameters that it refuses
    """
    from airflow.models.dag import DagModel
    from airflow.models.dagbag import DBDagBag
    from airflow.sdk.exceptions import ParamValidationError
    from airflow.utils import timezone
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    from fastapi import HTTPException

    with create_session() as session:
        model = session.get(DagModel, dag_id)
        dag = DBDagBag().get_latest_version_of_dag(dag_id, session=session)
        if model is None or dag is None:
            raise HTTPException(404, f"Airflow does not know the DAG {dag_id}")
        if model.is_paused:
            raise HTTPException(409, f"the DAG {dag_id} is paused: unpause it in Airflow first")
        now = timezone.utcnow()
        run_id = dag.timetable.generate_run_id(run_type=DagRunType.MANUAL, run_after=now, data_interval=None)
        try:
            run = dag.create_dagrun(
                run_id=run_id,
                logical_date=None,
                data_interval=None,
                run_after=now,
                conf=conf,
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.UI,
                triggering_user_name=user,
                state=DagRunState.QUEUED,
                session=session,
            )
        except (ParamValidationError, ValueError) as err:
            raise HTTPException(400, str(err)) from err
        return str(run.run_id)
