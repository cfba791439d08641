// Command kueue-judge reads quota cases (a JSON array on stdin) and prints, for each, what Kueue's own
// preemptor answers for its one incoming workload, as a JSON array on stdout.
//
// A pool becomes a ResourceFlavor of its name with one resource, a queue a ClusterQueue, whole GPUs its units.
// What Kueue has no word for (nodes, classes, groups, virtual clusters) is refused: unknown fields are errors.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	config "sigs.k8s.io/kueue/apis/config/v1beta2"
	kueue "sigs.k8s.io/kueue/apis/kueue/v1beta2"
	schdcache "sigs.k8s.io/kueue/pkg/cache/scheduler"
	"sigs.k8s.io/kueue/pkg/resources"
	"sigs.k8s.io/kueue/pkg/scheduler/flavorassigner"
	"sigs.k8s.io/kueue/pkg/scheduler/preemption"
	"sigs.k8s.io/kueue/pkg/workload"
)

type quota struct {
	Pool           string `json:"pool"`
	Nominal        int64  `json:"nominal"`
	BorrowingLimit *int64 `json:"borrowingLimit"`
	LendingLimit   *int64 `json:"lendingLimit"`
}

type cohort struct {
	Name   string  `json:"name"`
	Weight *int64  `json:"weight"`
	Parent string  `json:"parent"`
	Quota  []quota `json:"quota"`
}

type queue struct {
	Weight     *int64                        `json:"weight"`
	Name       string                        `json:"name"`
	Cohort     string                        `json:"cohort"`
	Quota      []quota                       `json:"quota"`
	Preemption *kueue.ClusterQueuePreemption `json:"preemption"`
}

type task struct {
	Name     string           `json:"name"`
	Queue    string           `json:"queue"`
	GPUs     map[string]int64 `json:"gpus"`
	Priority int32            `json:"priority"`
	Age      int64            `json:"age"`
	Ending   bool             `json:"ending"`
}

type quotaCase struct {
	Name     string          `json:"name"`
	Shows    string          `json:"shows"`
	Fair     bool            `json:"fairSharing"`
	Cohorts  []cohort        `json:"cohorts"`
	Queues   []queue         `json:"queues"`
	Running  []task          `json:"running"`
	Incoming []task          `json:"incoming"`
	Expected json.RawMessage `json:"expected"` // for others to compare
}

type answer struct {
	Name    string            `json:"name"`
	Fits    bool              `json:"fits"`
	Victims []string          `json:"victims"`
	Reasons map[string]string `json:"reasons"`
}

// nothingStored is what the cache asks for LocalQueues and Workloads that exist already: none.
type nothingStored struct{ client.Client }

func (nothingStored) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func main() {
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	var cases []quotaCase
	if err := decoder.Decode(&cases); err != nil {
		fail(err)
	}
	answers := make([]answer, 0, len(cases))
	for _, c := range cases {
		a, err := judge(c)
		if err != nil {
			fail(fmt.Errorf("case %s: %w", c.Name, err))
		}
		answers = append(answers, a)
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "kueue-judge:", err)
	os.Exit(1)
}

func judge(c quotaCase) (answer, error) {
	ctx, log, now := context.Background(), logr.Discard(), time.Unix(1<<30, 0)
	if len(c.Incoming) != 1 {
		return answer{}, fmt.Errorf("%d incoming workloads, want 1", len(c.Incoming))
	}
	cache := schdcache.New(nothingStored{}, schdcache.WithFairSharing(c.Fair))
	for _, pool := range pools(c) {
		cache.AddOrUpdateResourceFlavor(log, &kueue.ResourceFlavor{ObjectMeta: metav1.ObjectMeta{Name: pool}})
	}
	for _, q := range c.Queues {
		if err := cache.AddClusterQueue(ctx, clusterQueue(q)); err != nil {
			return answer{}, err
		}
	}
	for _, co := range c.Cohorts {
		spec := kueue.CohortSpec{
			ParentName: kueue.CohortReference(co.Parent), ResourceGroups: groups(co.Quota), FairSharing: weight(co.Weight),
		}
		if err := cache.AddOrUpdateCohort(&kueue.Cohort{ObjectMeta: metav1.ObjectMeta{Name: co.Name}, Spec: spec}); err != nil {
			return answer{}, err
		}
	}
	for _, t := range c.Running {
		if !cache.AddOrUpdateWorkload(log, running(t, now)) {
			return answer{}, fmt.Errorf("workload %s is not of a queue", t.Name)
		}
	}
	snapshot, err := cache.Snapshot(ctx)
	if err != nil {
		return answer{}, err
	}
	incoming := c.Incoming[0]
	info := workload.NewInfo(pending(incoming, now))
	info.ClusterQueue = kueue.ClusterQueueReference(incoming.Queue)
	cq := snapshot.ClusterQueue(info.ClusterQueue)
	if cq == nil {
		return answer{}, fmt.Errorf("queue %q is not active", incoming.Queue)
	}
	assignment, fits := assign(incoming, cq)
	result := answer{Name: c.Name, Fits: fits, Victims: []string{}, Reasons: map[string]string{}}
	if fits {
		return result, nil
	}
	var fair *config.FairSharing
	if c.Fair {
		fair = &config.FairSharing{}
	}
	preemptor := preemption.New(nothingStored{}, workload.Ordering{}, &record.FakeRecorder{}, fair, false, clocktesting.NewFakeClock(now))
	for _, target := range preemptor.GetTargets(log, *info, assignment, snapshot) {
		result.Victims = append(result.Victims, target.WorkloadInfo.Obj.Name)
		result.Reasons[target.WorkloadInfo.Obj.Name] = target.Reason
	}
	slices.Sort(result.Victims)
	return result, nil
}

// assign says of each pool whether the workload fits into what is available now, or others would have to go.
func assign(t task, cq *schdcache.ClusterQueueSnapshot) (flavorassigner.Assignment, bool) {
	var sets []flavorassigner.PodSetAssignment
	fitsAll := true
	for _, pool := range sorted(t.GPUs) {
		mode := flavorassigner.Fit
		if cq.Available(resources.FlavorResource{Flavor: kueue.ResourceFlavorReference(pool), Resource: name(pool)}) < t.GPUs[pool] {
			mode, fitsAll = flavorassigner.Preempt, false
		}
		sets = append(sets, flavorassigner.PodSetAssignment{
			Name:    kueue.NewPodSetReference(pool),
			Flavors: flavorassigner.ResourceAssignment{name(pool): {Name: kueue.ResourceFlavorReference(pool), Mode: mode}},
			Count:   1,
		})
	}
	return flavorassigner.Assignment{PodSets: sets}, fitsAll
}

func clusterQueue(q queue) *kueue.ClusterQueue {
	return &kueue.ClusterQueue{
		ObjectMeta: metav1.ObjectMeta{Name: q.Name},
		Spec: kueue.ClusterQueueSpec{
			CohortName:     kueue.CohortReference(q.Cohort),
			ResourceGroups: groups(q.Quota),
			Preemption:     q.Preemption,
			FairSharing:    weight(q.Weight),
		},
	}
}

func weight(value *int64) *kueue.FairSharing {
	if value == nil {
		return nil
	}
	return &kueue.FairSharing{Weight: resource.NewQuantity(*value, resource.DecimalSI)}
}

// name of the resource that is counted in a pool.
func name(pool string) corev1.ResourceName { return corev1.ResourceName("gpu-" + pool) }

func groups(quotas []quota) []kueue.ResourceGroup {
	var found []kueue.ResourceGroup
	for _, q := range quotas {
		limit := func(value *int64) *resource.Quantity {
			if value == nil {
				return nil
			}
			return resource.NewQuantity(*value, resource.DecimalSI)
		}
		found = append(found, kueue.ResourceGroup{
			CoveredResources: []corev1.ResourceName{name(q.Pool)},
			Flavors: []kueue.FlavorQuotas{{
				Name: kueue.ResourceFlavorReference(q.Pool),
				Resources: []kueue.ResourceQuota{{
					Name:           name(q.Pool),
					NominalQuota:   *resource.NewQuantity(q.Nominal, resource.DecimalSI),
					BorrowingLimit: limit(q.BorrowingLimit),
					LendingLimit:   limit(q.LendingLimit),
				}},
			}},
		})
	}
	return found
}

func pools(c quotaCase) []string {
	seen := map[string]int64{}
	for _, co := range c.Cohorts {
		for _, q := range co.Quota {
			seen[q.Pool] = 0
		}
	}
	for _, queue := range c.Queues {
		for _, q := range queue.Quota {
			seen[q.Pool] = 0
		}
	}
	return sorted(seen)
}

func sorted(by map[string]int64) []string {
	names := make([]string, 0, len(by))
	for name := range by {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// pending is the workload as submitted: one pod set per pool.
func pending(t task, now time.Time) *kueue.Workload {
	w := &kueue.Workload{
		ObjectMeta: metav1.ObjectMeta{
			Name: t.Name, Namespace: "default", UID: types.UID(t.Name),
			CreationTimestamp: metav1.NewTime(now.Add(-time.Duration(t.Age) * time.Second)),
		},
		Spec: kueue.WorkloadSpec{Priority: ptr.To(t.Priority)},
	}
	for _, pool := range sorted(t.GPUs) {
		w.Spec.PodSets = append(w.Spec.PodSets, kueue.PodSet{
			Name: kueue.NewPodSetReference(pool), Count: 1,
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "main", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					name(pool): resource.MustParse(strconv.FormatInt(t.GPUs[pool], 10)),
				}},
			}}}},
		})
	}
	return w
}

// running is the same with its quota reserved when it was created.
func running(t task, now time.Time) *kueue.Workload {
	w := pending(t, now)
	admission := &kueue.Admission{ClusterQueue: kueue.ClusterQueueReference(t.Queue)}
	for _, pool := range sorted(t.GPUs) {
		admission.PodSetAssignments = append(admission.PodSetAssignments, kueue.PodSetAssignment{
			Name:    kueue.NewPodSetReference(pool),
			Flavors: map[corev1.ResourceName]kueue.ResourceFlavorReference{name(pool): kueue.ResourceFlavorReference(pool)},
			ResourceUsage: corev1.ResourceList{
				name(pool): resource.MustParse(strconv.FormatInt(t.GPUs[pool], 10)),
			},
			Count: ptr.To[int32](1),
		})
	}
	w.Status.Admission = admission
	w.Status.Conditions = []metav1.Condition{{
		Type: kueue.WorkloadQuotaReserved, Status: metav1.ConditionTrue, Reason: "Admitted",
		LastTransitionTime: w.CreationTimestamp,
	}}
	if t.Ending {
		w.Status.Conditions = append(w.Status.Conditions, metav1.Condition{
			Type: kueue.WorkloadEvicted, Status: metav1.ConditionTrue, Reason: "Preempted",
			LastTransitionTime: w.CreationTimestamp,
		})
	}
	return w
}
