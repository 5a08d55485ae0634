//! What the views keep of the objects.

use kube::Resource as _;
use serde_json::json;

use crate::views::*;

#[test]
fn a_deployment_keeps_what_is_used() {
    let view: DeploymentView = serde_json::from_value(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "odoo-acme-0a1b2c3d",
            "uid": "u1",
            "resourceVersion": "7",
            "generation": 2,
            "creationTimestamp": "2026-11-20T10:00:00Z",
            "labels": {"app": "odoo"},
            "annotations": {LAST_APPLIED: "{}", "saasodoo/x": "y"},
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]
        },
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"instance-id": "0a1b2c3d"}},
            "template": {
                "metadata": {"creationTimestamp": null, "labels": {"app": "odoo"}},
                "spec": {
                    "containers": [{
                        "name": "odoo",
                        "image": "bitnamilegacy/odoo:17",
                        "env": [
                            {"name": "A", "value": "1"},
                            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
                        ],
                        "resources": {"limits": {"cpu": "1", "memory": "2Gi"}},
                        "startupProbe": {"httpGet": {"path": "/web/health", "port": 8069}, "periodSeconds": 10},
                        "ports": [{"containerPort": 8069, "name": "http"}],
                        "volumeMounts": [{"name": "data", "mountPath": "/bitnami/odoo"}]
                    }],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
                    "terminationGracePeriodSeconds": 60
                }
            }
        },
        "status": {"observedGeneration": 2, "readyReplicas": null, "conditions": [
            {"type": "Available", "status": "True", "lastTransitionTime": "2026-11-20T10:00:05Z"}
        ]}
    }))
    .expect("a deployment");
    assert_eq!(view.name(), "odoo-acme-0a1b2c3d");
    assert_eq!(
        (view.uid(), view.version(), view.label("app")),
        ("u1", "7", Some("odoo"))
    );
    assert_eq!(view.annotation(LAST_APPLIED), None);
    assert_eq!(view.annotation("saasodoo/x"), Some("y"));
    assert_eq!(view.metadata.managed_fields, None);
    let container = &view.spec.template.spec.containers[0];
    assert_eq!(container.env[0].value.as_deref(), Some("1"));
    assert_eq!(
        container.env[1]
            .value_from
            .as_ref()
            .and_then(|from| from.secret_key_ref.as_ref())
            .map(|r| r.key.as_str()),
        Some("k")
    );
    let volume = &view.spec.template.spec.volumes[0];
    assert_eq!(
        volume.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str()),
        Some("c")
    );
    assert_eq!(view.status.ready_replicas, 0);
    assert!(view.status.condition("Available").is_some_and(ConditionView::is_true));
}

#[test]
fn null_missing_and_unknown_values_are_accepted() {
    let pod: PodView = serde_json::from_value(json!({
        "metadata": {"name": "p", "labels": null, "creationTimestamp": "yesterday"},
        "spec": null,
        "status": {"phase": "Dreaming", "conditions": null, "containerStatuses": [
            {"name": "odoo", "state": {"sleeping": {}}, "lastState": null, "started": null}
        ]}
    }))
    .expect("a pod");
    assert_eq!(pod.status.phase, "Dreaming");
    assert_eq!(pod.created_at(), None);
    assert_eq!(
        pod.status.container("odoo").map(|c| &c.state),
        Some(&ContainerStateView::default())
    );
    let page: Page<ClaimView> =
        serde_json::from_value(json!({"metadata": {"continue": ""}, "items": null})).expect("a page");
    assert!(page.items.is_empty());
    let empty: ClaimView = serde_json::from_value(json!({})).expect("a claim");
    assert_eq!(empty, ClaimView::default());
}

#[test]
fn values_of_variables_are_not_shown() {
    let env = EnvView {
        name: "PASSWORD".to_owned(),
        value: Some("s3ntinel".to_owned()),
        value_from: None,
    };
    let shown = format!("{env:?}");
    assert!(shown.contains("PASSWORD") && !shown.contains("s3ntinel"), "{shown}");
}

#[test]
fn the_paths_are_the_servers() {
    assert_eq!(
        DeploymentView::url_path(&(), Some("ns")),
        "/apis/apps/v1/namespaces/ns/deployments"
    );
    assert_eq!(PodView::url_path(&(), Some("ns")), "/api/v1/namespaces/ns/pods");
    assert_eq!(
        ClaimView::url_path(&(), Some("ns")),
        "/api/v1/namespaces/ns/persistentvolumeclaims"
    );
}
