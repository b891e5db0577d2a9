"""A Flower ClientApp with handlers of its own."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cadp_fl.federated.flower_client import register
from cadp_fl.federated.flower_site import simulation_site
from digits_app.task import Net, accuracy, fit, load_data

app = ClientApp()


def site_for(context: Context):
    """Return the site of a node, over its own records."""
    return simulation_site(context, *load_data(context), classes=range(10), levels=17)


register(app, site_for)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the network for one round."""
    net = _net(message)
    (images, labels), _ = load_data(context)
    metrics = MetricRecord({"loss": fit(net, images, labels), "num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the network."""
    _, (images, labels) = load_data(context)
    metrics = MetricRecord({"accuracy": accuracy(_net(message), images, labels), "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _net(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net
