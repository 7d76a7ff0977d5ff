import gc
import weakref

import pytest
import torch
from render_reference import face

from nl3dmm.render import antialias_construct_topology_hash as topology_of


def test_neighbours_of_a_known_mesh():
    tri = torch.tensor([[0, 1, 2], [2, 1, 3], [2, 3, 0], [3, 1, 4]])  # edge k is opposite to corner k
    topology = topology_of(tri)
    assert topology.neighbour.tolist() == [[1, 2, -1], [3, 2, 0], [-1, 0, 1], [-1, -1, 1]]
    assert topology.corner.tolist() == [[2, 1, -1], [2, 2, 0], [-1, 1, 1], [-1, -1, 0]]
    assert topology.winding.tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_turned_triangles_are_marked():
    topology = topology_of(torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert topology.neighbour.tolist() == [[1, -1, -1], [-1, -1, 0]]
    assert topology.winding.tolist() == [[-1, 0, 0], [0, 0, -1]]


def test_closed_mesh_is_symmetric_whatever_the_order(tetrahedron):
    tri = tetrahedron[1]
    for turn in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        topology = topology_of(tri[:, turn][torch.tensor([2, 0, 3, 1])])
        assert (topology.winding == 1).all()
        for triangle, row in enumerate(topology.neighbour.tolist()):
            assert sorted([triangle, *row]) == [0, 1, 2, 3]
            assert all(triangle in topology.neighbour[other] for other in row)


def test_of_three_triangles_at_an_edge_the_first_two_are_neighbours():
    topology = topology_of(torch.tensor([[0, 1, 2], [0, 1, 3], [1, 0, 4], [0, 1, 5]]))
    assert topology.neighbour[:, 2].tolist() == [1, 0, 0, 0]
    assert topology.corner[:, 2].tolist() == [2, 2, 2, 2]
    assert topology.winding[:, 2].tolist() == [-1, -1, 1, -1]


@pytest.mark.parametrize("bad", [[0, 0, 1], [1, 2, 1], [3, 3, 3], [-1, 1, 2]])
def test_triangles_that_repeat_a_vertex_or_do_not_exist_have_no_neighbours(bad):
    tri = torch.tensor([[0, 1, 2], [2, 1, 3]])
    topology, expected = topology_of(torch.cat([torch.tensor([bad]), tri])), topology_of(tri)
    assert (topology.neighbour[0] == -1).all()
    assert (topology.corner[0] == -1).all()
    assert torch.equal(topology.neighbour[1:], expected.neighbour + (expected.neighbour >= 0))
    assert torch.equal(topology.corner[1:], expected.corner)


def test_huge_indices_and_empty_meshes():
    topology = topology_of(torch.tensor([[0, 1, 2**62], [2**62, 1, 2]]))
    assert topology.neighbour.tolist() == [[1, -1, -1], [-1, -1, 0]]
    assert topology_of(torch.zeros(0, 3, dtype=torch.int64)).neighbour.shape == (0, 3)
    assert topology_of(torch.zeros(1, 3, dtype=torch.int32)).neighbour.tolist() == [[-1, -1, -1]]


def test_int32_and_int64_agree():
    tri = face(9)[1]
    one, other = topology_of(tri), topology_of(tri.int())
    assert torch.equal(one.neighbour, other.neighbour)
    assert torch.equal(one.corner, other.corner)


def test_border_of_a_sheet_is_found():
    size = 9
    topology = topology_of(face(size)[1])
    assert (topology.neighbour < 0).sum() == 4 * (size - 1)
    assert ((topology.neighbour < 0) == (topology.winding == 0)).all()


def test_topology_is_kept_until_the_tensor_is_written_to():
    tri = torch.tensor([[0, 1, 2], [2, 1, 3]])
    first = topology_of(tri)
    assert topology_of(tri) is first
    assert topology_of(tri.clone()) is not first
    tri[1, 0] = 4
    assert topology_of(tri) is not first
    assert (topology_of(tri).neighbour == -1).all()
    assert topology_of(tri) is topology_of(tri)


def test_topology_is_released_with_its_tensor():
    tri = face(5)[1]
    kept = weakref.ref(topology_of(tri))
    assert kept() is topology_of(tri)
    del tri
    gc.collect()
    assert kept() is None


def test_tensors_made_in_inference_mode():
    with torch.inference_mode():
        tri = torch.tensor([[0, 1, 2], [2, 1, 3]])
        assert topology_of(tri).neighbour.tolist() == [[1, -1, -1], [-1, -1, 0]]
        tri[1, 0] = 4
        assert (topology_of(tri).neighbour == -1).all()
