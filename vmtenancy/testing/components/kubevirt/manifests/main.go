// Command manifests prints, as one JSON List, every cluster object that virt-operator would have created
// before it starts virt-api and virt-controller: KubeVirt's CRDs, its webhook configurations, its
// subresource APIServices and its priority class. The CRDs of the Containerized Data Importer that
// virt-controller watches follow, because CDI's own module is not served by the Go module proxy.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	extv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	cdiv1 "kubevirt.io/containerized-data-importer-api/pkg/apis/core/v1beta1"

	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
)

func main() {
	objects, err := objects(os.Args[1])
	if err == nil {
		err = print(objects)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func objects(namespace string) ([]any, error) {
	var all []any
	for _, crd := range []func() (*extv1.CustomResourceDefinition, error){
		components.NewVirtualMachineInstanceCrd, components.NewVirtualMachineCrd, components.NewPresetCrd,
		components.NewReplicaSetCrd, components.NewVirtualMachineInstanceMigrationCrd,
		components.NewKubeVirtCrd, components.NewVirtualMachinePoolCrd, components.NewVirtualMachineSnapshotCrd,
		components.NewVirtualMachineSnapshotContentCrd, components.NewVirtualMachineRestoreCrd,
		components.NewVirtualMachineExportCrd, components.NewVirtualMachineInstancetypeCrd,
		components.NewVirtualMachineClusterInstancetypeCrd, components.NewVirtualMachinePreferenceCrd,
		components.NewVirtualMachineClusterPreferenceCrd, components.NewMigrationPolicyCrd,
		components.NewVirtualMachineCloneCrd,
	} {
		object, err := crd()
		if err != nil {
			return nil, err
		}
		all = append(all, object)
	}
	volumes, err := dataVolumeCRD()
	if err != nil {
		return nil, err
	}
	all = append(all, volumes,
		openCRD("DataSource", "datasource", extv1.NamespaceScoped),
		openCRD("CDI", "cdi", extv1.ClusterScoped),
		openCRD("CDIConfig", "cdiconfig", extv1.ClusterScoped),
		openCRD("StorageProfile", "storageprofile", extv1.ClusterScoped),
		components.NewKubeVirtPriorityClassCR(),
		components.NewVirtAPIMutatingWebhookConfiguration(namespace),
		components.NewVirtAPIValidatingWebhookConfiguration(namespace),
	)
	for _, service := range components.NewVirtAPIAPIServices(namespace) {
		all = append(all, service)
	}
	return all, nil
}

// dataVolumeCRD takes the schema of a DataVolume's spec from the VirtualMachine CRD, which embeds it in
// spec.dataVolumeTemplates: both are generated from the same Go types.
func dataVolumeCRD() (*extv1.CustomResourceDefinition, error) {
	vm, err := components.NewVirtualMachineCrd()
	if err != nil {
		return nil, err
	}
	for _, version := range vm.Spec.Versions {
		if !version.Storage {
			continue
		}
		spec := version.Schema.OpenAPIV3Schema.Properties["spec"].
			Properties["dataVolumeTemplates"].Items.Schema.Properties["spec"]
		crd := openCRD("DataVolume", "datavolume", extv1.NamespaceScoped)
		crd.Spec.Names.ShortNames = []string{"dv", "dvs"}
		v := &crd.Spec.Versions[0]
		v.Schema.OpenAPIV3Schema.XPreserveUnknownFields = nil
		v.Schema.OpenAPIV3Schema.Required = []string{"spec"}
		v.Schema.OpenAPIV3Schema.Properties["spec"] = spec
		v.AdditionalPrinterColumns = []extv1.CustomResourceColumnDefinition{
			{Name: "Phase", Type: "string", JSONPath: ".status.phase"},
			{Name: "Progress", Type: "string", JSONPath: ".status.progress"},
			{Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp"},
		}
		return crd, nil
	}
	return nil, fmt.Errorf("the VirtualMachine CRD has no storage version")
}

// openCRD is a CDI kind whose content nothing here judges: virt-controller only lists and watches it.
func openCRD(kind, singular string, scope extv1.ResourceScope) *extv1.CustomResourceDefinition {
	open := true
	plural := singular + "s"
	return &extv1.CustomResourceDefinition{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: plural + "." + cdiv1.SchemeGroupVersion.Group},
		Spec: extv1.CustomResourceDefinitionSpec{
			Group: cdiv1.SchemeGroupVersion.Group,
			Scope: scope,
			Names: extv1.CustomResourceDefinitionNames{
				Kind: kind, ListKind: kind + "List", Singular: singular, Plural: plural,
			},
			Versions: []extv1.CustomResourceDefinitionVersion{{
				Name: cdiv1.SchemeGroupVersion.Version, Served: true, Storage: true,
				Subresources: &extv1.CustomResourceSubresources{Status: &extv1.CustomResourceSubresourceStatus{}},
				Schema: &extv1.CustomResourceValidation{OpenAPIV3Schema: &extv1.JSONSchemaProps{
					Type:                   "object",
					XPreserveUnknownFields: &open,
					Properties: map[string]extv1.JSONSchemaProps{
						"apiVersion": {Type: "string"}, "kind": {Type: "string"}, "metadata": {Type: "object"},
						"spec":   {Type: "object", XPreserveUnknownFields: &open},
						"status": {Type: "object", XPreserveUnknownFields: &open},
					},
				}},
			}},
		},
	}
}

// print drops `status`: the API server refuses the empty one that Go writes for a CRD.
func print(objects []any) error {
	list := corev1.List{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
	for _, object := range objects {
		raw, err := json.Marshal(object)
		if err != nil {
			return err
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil {
			return err
		}
		delete(fields, "status")
		if raw, err = json.Marshal(fields); err != nil {
			return err
		}
		list.Items = append(list.Items, runtime.RawExtension{Raw: raw})
	}
	return json.NewEncoder(os.Stdout).Encode(list)
}
